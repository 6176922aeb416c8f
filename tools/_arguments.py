"""Types of arguments that several tools share."""
import argparse


def positive(text: str) -> int:
    """A whole number from 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is less than 1')
    return int(text)
