"""A client of halfback that needs NumPy and ONNX Runtime: its protocol is written down in docs/protocol.md.

It imports nothing of the reference implementation, and shares no code with it: what the two share are the test
vectors in `protocol/vectors`, which both read.
"""
