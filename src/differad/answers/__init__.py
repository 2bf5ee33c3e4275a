"""What a model is asked and how its answer is read: the box syntax of each family, the questions, the parser.

`formats` holds one `AnswerFormat` per family, `parsing` turns boxes into its text and back, `resize` knows what an image
processor makes of a picture, `prompts` holds the words. Knows nothing of any model, of rewards or of metrics.
"""

from differad.answers.formats import FORMATS, AnswerFormat, answer_format, family_of
from differad.answers.parsing import Frame, ParsedAnswer, format_answer, parse_answer
from differad.answers.prompts import PARAPHRASES, QUESTION, SYSTEM, prompt_text, training_question
from differad.answers.resize import ResizeRule

__all__ = [
    "FORMATS",
    "PARAPHRASES",
    "QUESTION",
    "SYSTEM",
    "AnswerFormat",
    "Frame",
    "ParsedAnswer",
    "ResizeRule",
    "answer_format",
    "family_of",
    "format_answer",
    "parse_answer",
    "prompt_text",
    "training_question",
]
