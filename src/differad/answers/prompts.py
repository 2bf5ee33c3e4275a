"""The prompts: one system text, the deployment question, and twenty paraphrases for training.

Only the output-format sentence depends on the family; it comes from its `AnswerFormat`.
"""

import numpy as np

from differad.answers.formats import AnswerFormat

SYSTEM = (
    "You inspect manufactured parts. The first picture is the reference: a part known to be good. The second picture is the "
    "target: the part under inspection. Find what is physically wrong with the target by comparing it with the reference: "
    "something missing, added, broken, deformed, displaced, contaminated, or arranged in a way that makes no sense. "
    "Changes of light, colour cast, sharpness, camera position or scale are not defects. "
    "First reason inside <think> and </think>, then give the result inside <answer> and </answer>."
)

QUESTION = (
    "Compare the target (second picture) with the good reference (first picture), disregarding light and viewpoint. "
    "Is the target abnormal, and if so, where?"
)

PARAPHRASES: tuple[str, ...] = (
    "The first picture is the good reference, the second the target. Light and viewpoint aside, where is the target wrong?",
    "With the first picture, the good reference, as standard, mark the region of the second picture, the target, that departs "
    "from it. A new viewpoint or other light does not count.",
    "One good reference, then one target. Point out the abnormal area of the target; ignore light and viewpoint.",
    "Which part of the target in the second picture would you reject, given the good reference in the first? Differences in "
    "light or viewpoint are acceptable.",
    "Check the target (picture two) against the reference (picture one), a good part. Disregard light and viewpoint and give "
    "the place of the anomaly.",
    "Here are a good reference and a target to inspect, in this order. Find the defect in the target; light and viewpoint may "
    "differ without fault.",
    "Look for a structural or logical fault in the second picture, the target. The first picture is a good reference. Light "
    "and viewpoint are not faults.",
    "The reference comes first and is good. Does the target that follows show damage? Locate it, paying no regard to light "
    "or viewpoint.",
    "Suppose you approve parts that look like the reference, the good part of picture one. What region of the target, picture "
    "two, keeps you from approving it? Light and viewpoint do not matter.",
    "Inspect the target, the second picture. Where does it differ from the good reference, the first picture, other than by "
    "light and viewpoint?",
    "Between the good reference (first) and the target (second) something may have changed in the part itself. Box it; skip "
    "changes of light and viewpoint.",
    "Give the location of any missing, extra or damaged feature of the target in picture two, judged by the good reference "
    "in picture one. Light and viewpoint are free to vary.",
    "A camera took a good reference, then the target, perhaps in other light and from another viewpoint. Where is the target "
    "itself abnormal?",
    "Treat picture one as a good reference. Report where picture two, the target, is faulty; neither light nor viewpoint makes "
    "a fault.",
    "Quality control: reference first, good; target second, unknown. Draw a box around what is wrong with the target, leaving "
    "light and viewpoint out of account.",
    "What would a careful inspector circle on the target (second picture) after seeing the good reference (first picture)? "
    "Light and viewpoint are no reason to circle anything.",
    "Set aside light and viewpoint. Against the good reference in the first picture, which area of the second picture, the "
    "target, is not as it should be?",
    "The part in the first picture is good and serves as reference. Search the target in the second for an anomaly and say "
    "where it lies; overlook light and viewpoint.",
    "Decide whether the target, shown second, matches the good reference, shown first, apart from light and viewpoint. If it "
    "does not, where?",
    "Find the one place where the target (image 2) no longer agrees with the good reference (image 1) for a reason other than "
    "light or viewpoint.",
)


def prompt_text(answer_format: AnswerFormat, question: str = QUESTION) -> str:
    """The user's text beside the two images: the question, then the family's output-format sentence."""
    return f"{question} {answer_format.instruction}"


def training_question(rng: np.random.Generator) -> str:
    """A random paraphrase. Choose it when data is built, so that all completions of a group answer the same question."""
    return PARAPHRASES[int(rng.integers(len(PARAPHRASES)))]
