# `make demo` and `make test` do all the set-up: they make .venv from requirements*.txt when it is missing or older.
PYTHON ?= python3
RUN = .venv/bin/python
DEMO = data/demo
RECOGNISER = --recogniser $(DEMO)/recognition.safetensors
WEIGHTS = $(RECOGNISER) --verifier $(DEMO)/verification.safetensors

.PHONY: demo test lint clean

demo: .venv/installed
	$(RUN) face_recognition.py prepare --drawn-people 600 --prepared $(DEMO)
	$(RUN) face_recognition.py train --prepared $(DEMO) $(RECOGNISER) --time-limit 2.5 --batch-size 64
	$(RUN) face_recognition.py train-verify --prepared $(DEMO) $(WEIGHTS)
	$(RUN) face_recognition.py evaluate --prepared $(DEMO) $(WEIGHTS) --charts $(DEMO)
	$(RUN) face_recognition.py compare $(WEIGHTS) $(DEMO)/drawn_600_people_0/person_00011/0001.jpg $(DEMO)/drawn_600_people_0/person_00011/0002.jpg || test $$? -eq 1
	$(RUN) face_recognition.py compare $(WEIGHTS) $(DEMO)/drawn_600_people_0/person_00011/0001.jpg $(DEMO)/drawn_600_people_0/person_00021/0001.jpg || test $$? -eq 1

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
