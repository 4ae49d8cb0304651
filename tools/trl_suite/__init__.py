"""TRL's own tests of DPOTrainer, with TRL's trainer and with MODPOTrainer in its place: `python -m tools.trl_suite`.

The tests are read from a checkout of TRL and stay there. Tiny random models and rows of our own stand in for their
models and data sets, which the Hub has: `stand_ins` writes them, `plugin` serves them under the Hub's names.
"""
