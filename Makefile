# `make` alone lists the targets. Everything that they install goes to .venv.

PORT ?= 8000
VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python

# Images often forbid Python to keep compiled modules. Tests start hundreds of processes, each of which
# would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

# The stamps say which requirements .venv holds, so that pip runs only when those change.
SERVING := $(VENV)/.requirements
DEVELOPMENT := $(VENV)/.requirements-dev

INSTALL = $(PYTHON_IN_VENV) -m pip install --disable-pip-version-check

# A half of the tests: each keeps its own figures, of which the report is made afterwards. Branches of
# the tests themselves, for which slipcover knows an older pytest only, are not asked for. Whenever a
# line has run so often, slipcover looks through all modules for code to give back, which takes longer
# than to count the line some hundred times more.
COVERED := $(PYTHON_IN_VENV) -W "ignore:Unable to activate pytest branch" -m slipcover --branch --threshold 1000 \
	--source policy_server --json --out
# The floor of coverage in percent, raised as the suite grows. It is not 100: what runs in Ray's
# workers and in the servers that service tests start is not measured.
LEAST_COVERED := 90
SERVERS_LOG := .tests-of-servers.log

IS_SUPPORTED := -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12), (3, 13)])'

# Sets $python. Looks in every folder of PATH and runs what it finds: a pyenv shim exists for each
# version ever installed, fails where that version isn't active, and hides the interpreter behind it.
define find_python
	python=""; without_venv=""; \
	search() { \
	    IFS=:; \
	    for name in python3.11 python3.12 python3.13 python3 python; do \
	        for folder in $$PATH; do \
	            candidate="$${folder:-.}/$$name"; \
	            "$$candidate" $(IS_SUPPORTED) >/dev/null 2>&1 || continue; \
	            if "$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	                python="$$candidate"; return; \
	            fi; \
	            without_venv="$$candidate"; \
	        done; \
	    done; \
	}; \
	search; unset IFS; \
	if [ -z "$$python" ] && [ -n "$$without_venv" ]; then \
	    echo "make: $$without_venv lacks its venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; \
	elif [ -z "$$python" ]; then \
	    echo "make: Policy Server needs Python 3.11, 3.12 or 3.13, and the PATH has none of them" >&2; \
	    exit 1; \
	fi
endef

.DEFAULT_GOAL := help
.PHONY: help python venv serve test test-code test-servers lint check format bench lock audit clean broken-venv

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

python:  ## show which Python .venv would be built with
	@$(find_python); echo "$$python"

venv: $(SERVING)  ## put what a server needs in .venv

serve: $(SERVING)  ## serve the policy on port 8000 (PORT=... for another)
	@$(PYTHON_IN_VENV) generate.py copy_server_files examples/mouse_and_cheese --if-missing
	$(PYTHON_IN_VENV) -m uvicorn app:app --host 0.0.0.0 --port $(PORT)

test: $(DEVELOPMENT)  ## run every test, with coverage
	@rm -f .coverage.*
	@$(MAKE) --no-print-directory --jobs=2 test-code test-servers; status=$$?; \
	cat $(SERVERS_LOG); \
	$(PYTHON_IN_VENV) -m slipcover --branch --skip-covered --fail-under $(LEAST_COVERED) \
	    --merge .coverage.code.json .coverage.servers.json --out .coverage.json && exit $$status

# Tests that start servers wait for them most of the time, so they run beside the others, with those
# of the demo page, so that both halves take as long. What they print is shown when all have ended. To
# import the modules of all other tests takes 12 s of a processor, so only those with such marks are.
test-code: $(DEVELOPMENT)
	$(COVERED) .coverage.code.json -m pytest -m "not service and not page"

test-servers: $(DEVELOPMENT)
	$(COVERED) .coverage.servers.json -m pytest -m "service or page" \
	    $$(grep -rlE --include="test_*.py" "mark\.(service|page)" tests) >$(SERVERS_LOG) 2>&1

lint: $(DEVELOPMENT)  ## check format, style, types and layers
	$(PYTHON_IN_VENV) -m ruff format --check .
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m mypy
	$(VENV)/bin/lint-imports --no-logo

check: lint test  ## run lint, then test: what a commit has to pass

format: $(DEVELOPMENT)  ## format the code and fix what ruff can fix
	$(PYTHON_IN_VENV) -m ruff format .
	$(PYTHON_IN_VENV) -m ruff check --fix .

bench: $(DEVELOPMENT)  ## measure the server and others, in some 20 minutes (BENCH="--quick" for fewer)
	$(PYTHON_IN_VENV) -m benchmarks $(BENCH)

# The image has on x86-64 a TensorFlow for CPUs alone, which is 1 GB smaller. Versions that stand in a
# lock already stay; those of tools that the tests need too are the tests'.
IMAGE_TENSORFLOW := s/^tensorflow(==.*)/tensorflow-cpu\1; platform_machine == 'x86_64'\ntensorflow\1; platform_machine != 'x86_64'/
COMPILE := $(VENV)/bin/uv pip compile --no-config --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" --constraint requirements-dev.txt

lock: $(DEVELOPMENT)  ## pin the packages of the image with hashes, after a change of requirements.txt
	sed -E "$(IMAGE_TENSORFLOW)" requirements.txt | $(COMPILE) - --output-file deploy/image-requirements.txt
	grep '^cyclonedx-bom==' requirements-dev.txt | $(COMPILE) - --output-file deploy/sbom-requirements.txt

audit: $(DEVELOPMENT)  ## look the image's packages up among known vulnerabilities (asks PyPI)
	$(VENV)/bin/pip-audit --strict --disable-pip --require-hashes --requirement deploy/image-requirements.txt

clean:  ## remove .venv, caches and reports; policies stay
	rm -rf $(VENV) benchmarks/.venvs $(SERVERS_LOG) .coverage.*
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose interpreter has gone (an upgrade, a folder from another machine) or is of
# another version is built anew, whatever its stamps say.
ifneq ($(shell $(PYTHON_IN_VENV) $(IS_SUPPORTED) 2>/dev/null && echo works),works)
$(SERVING): broken-venv
endif

$(SERVING): requirements.txt
	@if ! { $(PYTHON_IN_VENV) $(IS_SUPPORTED) && $(PYTHON_IN_VENV) -m pip --version; } >/dev/null 2>&1; then \
	    $(find_python); \
	    echo "$$python -m venv $(VENV)"; \
	    rm -rf $(VENV) && "$$python" -m venv $(VENV); \
	fi
	$(INSTALL) -r requirements.txt
	@touch $@

# Whoever tests needs no compiled form of every module of the libraries, which takes half as long as all
# else of the installation: Python itself compiles those that are imported, a third, and keeps them.
$(DEVELOPMENT): INSTALL += --no-compile
$(DEVELOPMENT): $(SERVING) requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	@touch $@
