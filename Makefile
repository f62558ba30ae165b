# `make demo` and `make test` do all the set-up: they make .venv from requirements*.txt when it is missing or older.
PYTHON ?= python3
RUN = .venv/bin/python
DEMO = data/demo
RECOGNISER = --recogniser $(DEMO)/recognition.safetensors
SAMPLES = --samples $(DEMO)/people --gallery $(DEMO)/gallery

.PHONY: demo demo-training test lint clean

# Who is in these photos? The drawn people of face_recognition_samples/ are known, Grace Hopper (her photo comes with
# matplotlib) is not. Then a mirrored and darkened copy of her photo is enrolled, and both photos are asked about again.
demo: .venv/installed
	$(RUN) fasterrcnn_face_recognition.py people
	@mkdir -p $(DEMO)
	@$(RUN) -c "import matplotlib, shutil; shutil.copy(matplotlib.get_data_path() + '/sample_data/grace_hopper.jpg', '$(DEMO)')"
	@$(RUN) -c "from PIL import Image, ImageOps; ImageOps.mirror(Image.open('$(DEMO)/grace_hopper.jpg')).point(lambda v: v * 0.6).save('$(DEMO)/darker.jpg')"
	printf '%s\n' $(DEMO)/grace_hopper.jpg dataset/group_photo.jpg | $(RUN) fasterrcnn_face_recognition.py
	@rm -rf $(DEMO)/people && cp -R face_recognition_samples $(DEMO)/people
	$(RUN) fasterrcnn_face_recognition.py enroll "Grace Hopper" $(DEMO)/darker.jpg $(SAMPLES)
	$(RUN) fasterrcnn_face_recognition.py recognize $(DEMO)/grace_hopper.jpg dataset/group_photo.jpg $(SAMPLES) --out $(DEMO)
	@echo 'Now your photos: put some into face_recognition_samples/NAME/, then'
	@echo '. .venv/bin/activate && python3 fasterrcnn_face_recognition.py'

# Draws people, trains the published recogniser further on them for two minutes, measures it, compares photos.
demo-training: .venv/installed
	$(RUN) face_recognition.py prepare --drawn-people 600 --prepared $(DEMO)
	$(RUN) face_recognition.py train --prepared $(DEMO) $(RECOGNISER) --time-limit 2 --batch-size 64 --name demo \
		--init weights/recognition.safetensors --learning-rate 5e-4
	$(RUN) face_recognition.py train-verify --prepared $(DEMO) $(RECOGNISER)
	$(RUN) face_recognition.py evaluate --prepared $(DEMO) $(RECOGNISER) --charts $(DEMO)
	$(RUN) face_recognition.py compare $(RECOGNISER) $(DEMO)/drawn_600_people_0/person_00011/0001.jpg $(DEMO)/drawn_600_people_0/person_00011/0002.jpg || test $$? -eq 1
	$(RUN) face_recognition.py compare $(RECOGNISER) $(DEMO)/drawn_600_people_0/person_00011/0001.jpg $(DEMO)/drawn_600_people_0/person_00021/0001.jpg || test $$? -eq 1

test: .venv/installed-dev
	$(RUN) -m pytest

lint: .venv/installed-dev
	$(RUN) -m ruff check

clean:
	rm -rf .venv $(DEMO)

.venv/installed: requirements.txt
	$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements.txt
	$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ .venv/installed
