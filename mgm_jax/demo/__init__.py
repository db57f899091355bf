"""The demo's material: photographs, handwritten digits, scenes, questions and the dataset."""
