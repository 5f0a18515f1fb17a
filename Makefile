# Two commands: `make train` and `make test`. Each sets up .venv first when that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := model=resnet optimizer=rmsprop data=shapes trainer=fast trainer.max_epochs=5
ARGS ?= $(DEMO)

.DEFAULT_GOAL := help
.PHONY: help setup train bench docs test test-all lint format lock fork clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
	  || grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST)

setup: $(READY) ## set up .venv with the pinned packages

$(READY): requirements.lock scripts/setup.lock scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/setup.sh
	@touch $@

train: setup ## train a ResNet on embedded images for a minute or two, or what ARGS="model=lstm data=adding" says
	$(BIN)/python src/train.py $(ARGS)

bench: ARGS :=
bench: setup ## measure speed and memory beside plain PyTorch and Lightning: twelve minutes on two idle cores (docs/performance.md)
	$(BIN)/python scripts/bench $(ARGS)

docs: setup ## build the documentation as a site that opens without a network: build/site/index.html
	@bash scripts/docs.sh $(VENV)

test: setup ## run the default tests: three to six minutes on two cores, no network, no GPU
	$(BIN)/python -m pytest -n auto --dist loadgroup

test-all: setup ## run every test, the slow ones and those for a GPU too
	$(BIN)/python -m pytest -n auto --dist loadgroup -m ""

lint: setup ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put style and formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## pin the newest packages that pyproject.toml allows, by hash
	bash scripts/lock.sh $(VENV)

fork: setup ## rename the package everywhere, as in  make fork NAME=mylab  (docs/forking.md)
	@$(BIN)/python scripts/fork.py "$(NAME)"
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .
	@touch $(READY)

clean: ## remove .venv and caches; runs and data stay
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
