"""Runs a tool by its name: one of this package, or one of MMSegmentation.

MMSegmentation's tools import ``mmseg.apis``, which ``mmcv-lite`` allows only after this package has
been imported. Here it has.
"""
import ast
import runpy
import sys
from pathlib import Path

from mmseg_bisenetv2 import MIM_FOLDER
from mmseg_bisenetv2.compat import draw_pictures_of_any_layout

import mmseg

OUR_TOOLS = MIM_FOLDER / 'tools'
MMSEG_TOOLS = Path(mmseg.__path__[0]) / '.mim/tools'
MMSEG_FOLDERS = ('analysis_tools', 'misc', 'dataset_converters')
# Tools of MMSegmentation that are not run, because something here does it better.
REPLACED = dict(
    confusion_matrix=(
        "MMSegmentation's computes with class ids of 8 bits, which is wrong from 17 classes on. "
        'A test draws the matrix into test_confusion.png of its work directory: '
        'mim test mmseg_bisenetv2 CONFIG --checkpoint FILE'),
    publish_model=(
        "MMSegmentation's removes only the optimiser from the file. Use: "
        'python -m mmseg_bisenetv2 convert_checkpoint IN.pth OUT.pth --strip'))


def find_tools() -> dict[str, Path]:
    """Returns the scripts by their names; ours take the place of MMSegmentation's."""
    scripts = [script for folder in MMSEG_FOLDERS for script in MMSEG_TOOLS.glob(f'{folder}/*.py')
               if script.stem not in REPLACED]
    scripts += [script for script in OUR_TOOLS.glob('*.py') if not script.stem.startswith('_')]
    return {script.stem: script for script in scripts}


def list_tools() -> str:
    """Returns the help: our tools with a line each, and the names of MMSegmentation's."""
    lines = ['python -m mmseg_bisenetv2 TOOL ARGUMENTS', '',
             'TOOL --help explains the arguments. The tools of this package:']
    theirs: dict[str, list[str]] = {folder: [] for folder in MMSEG_FOLDERS}
    for name, script in sorted(find_tools().items()):
        if script.parent == OUR_TOOLS:
            text = ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))) or ''
            lines.append(f'  {name:20} {text.partition(chr(10))[0]}')
        else:
            theirs[script.parent.name].append(name)
    for folder, names in theirs.items():
        lines.append(f"MMSegmentation's {folder}: {', '.join(names)}")
    return '\n'.join(lines)


def run_script(script: Path) -> None:
    """Runs a script with the arguments of this process, as ``python SCRIPT`` would."""
    sys.argv[0] = str(script)
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name='__main__')


def main() -> None:
    """Runs the tool that the command line names, or lists what there is.

    Raises:
        SystemExit: If there is no such tool.
    """
    name = sys.argv.pop(1) if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(list_tools())
    elif name in REPLACED:
        sys.exit(f'{name}: {REPLACED[name]}')
    elif script := find_tools().get(name):
        if name == 'browse_dataset':
            draw_pictures_of_any_layout()
        run_script(script)
    else:
        sys.exit(f'There is no tool {name!r}.\n\n{list_tools()}')
