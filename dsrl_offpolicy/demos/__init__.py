"""Demonstrations: the seams for file formats and makers, and the windows that Stages 0 and 1 train on."""
