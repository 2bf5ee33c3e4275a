"""The words: one system text, the question asked in use, and twenty ways to ask it in training.

Every question names image 1 as the good reference and image 2 as the target, and says that light and viewpoint do not
count. How to write the box is the format's sentence, added at the end. Knows nothing of images or tokenizers.
"""

import random

from differad.answers.formats import AnswerFormat

SYSTEM = (
    "You inspect parts by comparing pictures. You get a picture of a good part and one of a part under inspection, "
    "reason step by step about how they differ, and then say where the inspected part is abnormal."
)

QUESTION = (
    "Image 1 is the reference and shows a good part; image 2 is the target under inspection. Compare them and locate what "
    "is abnormal in image 2: something missing, added, broken, moved or impossible. Differences in light or viewpoint "
    "do not count."
)


PARAPHRASES = (
    "Take image 1 as the reference of a good part and image 2 as the target. Where does the target deviate from it? Lighting "
    "and viewpoint may differ and are no fault.",
    "You see a flawless part in image 1 (the reference) and a part to check in image 2 (the target). Box the flaw in image 2, "
    "leaving changes of light or viewpoint aside.",
    "Image 1: reference, a good part. Image 2: target, possibly faulty. Find the place in image 2 that does not belong there; a "
    "different viewpoint or other light is acceptable.",
    "Using the good reference in image 1, check the target in image 2 for damage, missing pieces or foreign matter, and give "
    "its place. Ignore light and viewpoint.",
    "Is anything wrong with the target in image 2 when held against the good reference in image 1? Give the box, and do not "
    "report a shift of viewpoint or light.",
    "What has changed from the good reference (image 1) to the target (image 2) that could be a defect? Neither light nor "
    "viewpoint is a defect. Locate it in image 2.",
    "Compare the target, image 2, with the reference, image 1, which is good. Point out the region of image 2 that is abnormal. "
    "Variations of viewpoint and light are normal.",
    "A good sample is the reference in image 1. Judge the target in image 2 by it and mark where structure or content is wrong, "
    "whatever the light or the viewpoint.",
    "Inspect image 2, the target: which area would you reject, given that image 1, the reference, is good? Light and viewpoint "
    "alone are never a reason to reject.",
    "Image 1 serves as the good reference for the target in image 2. Search the target for a real anomaly, not for an effect of "
    "light or viewpoint, and say where it is.",
    "Locate the defect of the target (image 2), if it has one. The reference (image 1) shows how a good part looks; light and "
    "viewpoint can vary freely.",
    "Two pictures of one kind of part: image 1, the reference, is good; image 2 is the target. Give the region of image 2 where a "
    "part is missing, extra, broken or displaced. Disregard viewpoint and light.",
    "As a quality inspector, set the target in image 2 beside the good reference in image 1. Where would you place your mark? "
    "Skip what light or viewpoint explains.",
    "With image 1 as a good reference, decide whether the target in image 2 is sound, and if it is not, box what is wrong. A change "
    "of light or of viewpoint leaves it sound.",
    "Look for the anomaly in image 2, the target. Everything in image 1, the reference, is good, and differences that come from "
    "the light or the viewpoint are to be left out.",
    "Which part of the target in image 2 contradicts the good reference in image 1, in shape, content or logic? Answer with its "
    "place; light and viewpoint are no contradiction.",
    "The reference in image 1 passed inspection as good. Does the target in image 2 pass too? If not, frame the fault, and mind "
    "that light and viewpoint are not faults.",
    "Go over the target in image 2 region by region against the good reference in image 1, and report where it is abnormal. Do "
    "not count light or viewpoint.",
    "Something in the target (image 2) may be scratched, lost, added or out of place compared with the good reference (image 1). "
    "Show where, without being misled by light or viewpoint.",
    "Tell where the target in image 2 is defective, knowing that the reference in image 1 is good and that both may be taken in "
    "other light and from another viewpoint.",
)


def prompt_text(fmt: AnswerFormat, question: str = QUESTION) -> str:
    """The question followed by the sentence that asks for the family's output."""
    return f"{question} {fmt.sentence}"


def training_question(rng: random.Random) -> str:
    """One of the paraphrases, drawn with the generator that is passed in."""
    return rng.choice(PARAPHRASES)
