"""GGUF, the file format of llama.cpp: the container and its number formats, whatever the model is."""
