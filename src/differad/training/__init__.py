"""Training: supervised cold start and difficulty-aware reinforcement learning, a thin layer on TRL.

The mathematics (`advantages`, `localization`) and the recipes need no trainer; only `sft` and `rl` import TRL.
"""
