"""Training: supervised cold start and difficulty-aware reinforcement, thin on top of TRL.

The mathematics (`advantages`, `localization`) and the recipes need no trainer; `sft` and `rl` bring TRL in.
"""
