"""Signals after OpenVINO's networks are gone."""
import subprocess
import sys
import textwrap

from small import write


def test_a_signal_after_two_predictors_is_survived(tmp_path):
    """In a new process, which a failure ends with a segmentation fault.

    Each OpenVINO core gives its thread another stack for signal handlers, on processors with AMX,
    and at its end puts back the one before, which may be that of a core that is gone.
    """
    config, checkpoint = write(tmp_path)
    code = textwrap.dedent(f'''
        import os, signal
        import numpy as np
        from mmseg_bisenetv2.deploy import Predictor
        signal.signal(signal.SIGUSR1, lambda *_: print('handled'))
        first, second = (Predictor({str(config)!r}, {str(checkpoint)!r}, backend='openvino')
                         for _ in range(2))
        for predictor in (first, second):
            predictor(np.zeros((64, 96, 3), np.uint8))
        del predictor, first
        del second
        os.kill(os.getpid(), signal.SIGUSR1)
    ''')
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0 and 'handled' in result.stdout, result.stdout
