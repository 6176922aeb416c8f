"""``python -m mmseg_bisenetv2 TOOL ARGUMENTS`` runs a tool, ours or MMSegmentation's."""
from mmseg_bisenetv2.tool_runner import main

if __name__ == '__main__':
    main()
