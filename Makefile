# make demo   train, test and draw on synthetic street scenes, on the CPU, in minutes
# make test   the test suite
# make lint   ruff
#
# Each makes its own environment in .venv first; Python 3.11 and make are all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := configs/bisenetv2_fcn_toy-cityscapes.py
WORK := work_dirs/demo
# MMEngine and mim greet with a dozen deprecation warnings of their dependencies
export PYTHONWARNINGS := ignore

.PHONY: demo test lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[lite,mim]'
	touch $@

.venv/complete: .venv/installed
	$(BIN)/pip install -c constraints.txt -e '.[lite,mim,png,deploy,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python tools/make_toy_cityscapes.py data/toy_cityscapes
	rm -rf $(WORK)
	$(BIN)/mim train mmseg $(DEMO) --work-dir $(WORK)
	$(BIN)/mim test mmseg $(DEMO) --checkpoint "$$(cat $(WORK)/last_checkpoint)" \
		--work-dir $(WORK)/test
	$(BIN)/python tools/draw_results.py $(DEMO) "$$(cat $(WORK)/last_checkpoint)" $(WORK) \
		--test-dir $(WORK)/test

# Two processes side by side, a thread each. The runtimes have one of their own: in one with all else
# it ended in a segmentation fault
test: .venv/complete
	export OMP_NUM_THREADS=1; \
	$(BIN)/pytest tests/deploy tests/test_predict_tool.py > .venv/test_deploy.log 2>&1 & \
	deploy=$$!; status=0; \
	$(BIN)/pytest --ignore tests/deploy --ignore tests/test_predict_tool.py || status=1; \
	wait $$deploy || status=1; cat .venv/test_deploy.log; exit $$status

lint: .venv/complete
	$(BIN)/ruff check

clean:
	rm -rf .venv build dist *.egg-info work_dirs/demo
