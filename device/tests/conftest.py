"""What the device's tests share with the reference's: a table of film sentences, and a tiny text model."""

from halfback.testing.texts import sentences as sentences
from halfback.testing.texts import tiny_bert as tiny_bert
