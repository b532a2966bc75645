PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# A folder of data sets that is already there can be named with DATA_ROOT.
export DATA_ROOT ?= $(CURDIR)/data

.PHONY: demo test soak lint figures

$(VENV)/installed: requirements.txt requirements-sweep.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: $(VENV)/installed  ## Bayesian networks with the VAEs and without, on 50 images
	$(PY) data/prepare_mnist.py
	$(PY) -m experiments.demo

# Two workers with one thread each take less time than one with two, and what a worker waits for runs beside the other.
test: lint  ## the whole suite
	-$(PY) data/prepare_mnist.py
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile

soak: $(VENV)/installed  ## 30 kills and 10 vanished terminals of each script; the last result is in tests/README.md
	DWP_KILLS=30 $(PY) -m pytest -q tests/risks/test_kills.py -k "killed or vanishes" --durations=6

lint: $(VENV)/installed  ## style, and the direction of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache

figures: $(VENV)/installed  ## the pictures in data/fconv/figures, but for the histograms of norms, which need the networks
	$(PY) -m experiments.plot_kernels --conv data/fconv/conv7x7 --vae data/fconv/vae7x7 --out data/fconv/figures
	for k in 5x5 3x3 3x3-1; do $(PY) -m experiments.plot_kernels --conv data/fconv/conv$$k --out data/fconv/figures || exit; done
	for k in 7x7 5x5 3x3 3x3-1; do $(PY) -m experiments.vae_stats --vae data/fconv/vae$$k --data data/fconv/conv$$k \
		--out data/fconv/figures/vae$$k || exit; done
