"""Types of arguments that several tools share."""
import argparse


def positive(text: str) -> int:
    """A whole number from 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is less than 1')
    return int(text)


def picture_size(text: str) -> tuple[int, int]:
    """(width, height) of ``1024x512``."""
    width, cross, height = text.partition('x')
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r}, expected WIDTHxHEIGHT, such as 1024x512')
    return int(width), int(height)
