"""Rewards: what scores a response, from functions, columns of the data, reward models and implicit rewards."""
