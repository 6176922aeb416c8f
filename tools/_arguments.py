"""Types of arguments that several tools share."""
import argparse
import re
from typing import Any


def positive(text: str) -> int:
    """A whole number from 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is less than 1')
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT, as FFmpeg has it, to (height, width), as arrays have it."""
    match = re.fullmatch('([1-9][0-9]*)x([1-9][0-9]*)', text)
    if not match:
        raise argparse.ArgumentTypeError(
            f'expected WIDTHxHEIGHT in pixels, such as 2048x1024, got {text!r}')
    return int(match[2]), int(match[1])


def format_size(size: tuple[int, int]) -> str:
    """(height, width) to WIDTHxHEIGHT."""
    return f'{size[1]}x{size[0]}'


SIZE: dict[str, Any] = dict(type=parse_size, metavar='WIDTHxHEIGHT')
