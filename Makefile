# make demo        train and test on synthetic street scenes, on the CPU, in minutes
# make test        the test suite, in two processes
# make test-slow   the long forms of some tests, which `make test` leaves out
# make gpu         what only a GPU can show, in 8 minutes, with a report in work_dirs/gpu_report
# make versions    a short suite with other versions of Python, PyTorch and so on; takes an hour
# make lint        ruff and mypy
#
# Each makes its own environment in .venv first; Python 3.11 to 3.13 and make are all they need.
# `make PYTHON=python3.12 ...` names the interpreter for a new environment; `make CONSTRAINTS= ...`
# fills it with the newest releases instead of the pinned ones.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 \
	|| command -v python3 || echo python3)
CONSTRAINTS ?= -c constraints.txt
BIN := .venv/bin
DEMO := configs/bisenetv2_fcn_toy-cityscapes.py
WORK := work_dirs/demo
# MMEngine and mim print a dozen deprecation warnings of their dependencies at every start.
export PYTHONWARNINGS := ignore

.PHONY: demo test test-slow gpu versions lint clean

# The version is checked before pip runs: on Python 3.10, pip would end with a message about numpy.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit( \
		"Python 3.11 to 3.13 is needed, found %d.%d.%d: make PYTHON=python3.11" % v[:3])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(CONSTRAINTS) -e '.[lite,mim]'
	touch $@

.venv/complete: .venv/installed
	$(BIN)/pip install $(CONSTRAINTS) -e '.[lite,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python tools/make_toy_cityscapes.py data/toy_cityscapes
	rm -rf $(WORK)
	$(BIN)/mim train mmseg $(DEMO) --work-dir $(WORK)
	$(BIN)/mim test mmseg $(DEMO) --checkpoint "$$(cat $(WORK)/last_checkpoint)" \
		--work-dir $(WORK)/test
	@echo "Pictures:   $(WORK)/test/test_pictures/"
	@echo "Curve:      $(WORK)/training_curve.png"
	@echo "Checkpoint: $$(cat $(WORK)/last_checkpoint)"
	@awk '/mean/ { print "mIoU:       " $$4 " %" }' $(WORK)/test/test_classes.md

# Two processes with a thread each. A file's tests stay in one of them, and share their fixtures there.
test: .venv/complete
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-slow: .venv/complete
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

gpu: .venv/complete
	$(BIN)/python tools/gpu_report.py

# Makes environments of its own. `make versions ROWS="--rows onedl --python 3.12=PATH"`
versions:
	$(PYTHON) tests/versions.py $(ROWS)

lint: .venv/complete
	$(BIN)/ruff check
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info work_dirs/demo work_dirs/versions
