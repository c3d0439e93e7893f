"""One definition of a language model, used to train and to generate."""
