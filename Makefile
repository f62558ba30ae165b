# `make demo` and `make test` do all the set-up: they make .venv from requirements*.txt when it is missing or older.
PYTHON ?= python3
RUN = .venv/bin/python
DEMO = data/demo
DEMO_WEIGHTS = --recogniser $(DEMO)/recognition.safetensors --verifier $(DEMO)/verification.safetensors

.PHONY: demo test lint clean

demo: .venv/installed
	$(RUN) face_recognition.py prepare --drawn-people 600 --prepared $(DEMO)
	$(RUN) face_recognition.py train --prepared $(DEMO) $(DEMO_WEIGHTS) --time-limit 2
	$(RUN) face_recognition.py train-verify --prepared $(DEMO) $(DEMO_WEIGHTS)
	$(RUN) face_recognition.py evaluate --prepared $(DEMO) $(DEMO_WEIGHTS) --charts $(DEMO)
	$(RUN) face_recognition.py compare $(DEMO_WEIGHTS) $(DEMO)/drawn_faces/person_00001/0001.jpg $(DEMO)/drawn_faces/person_00001/0002.jpg || test $$? -eq 1
	$(RUN) face_recognition.py compare $(DEMO_WEIGHTS) $(DEMO)/drawn_faces/person_00001/0001.jpg $(DEMO)/drawn_faces/person_00002/0001.jpg || test $$? -eq 1

test: .venv/installed-dev
	$(RUN) -m pytest

lint: .venv/installed-dev
	$(RUN) -m ruff check

clean:
	rm -rf .venv $(DEMO)

.venv/installed: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ .venv/installed
