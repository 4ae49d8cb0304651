"""TRL's own tests of DPOTrainer, run with TRL's trainer and with MODPOTrainer in its place: `python -m tools.trl_suite`.

The tests are read from a checkout of TRL and stay there. Their models and data sets, which the Hub has, are stood in for
by tiny random models and by rows of our own: `stand_ins` writes them, `plugin` serves them under the Hub's names.
"""
