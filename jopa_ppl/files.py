"""Placeholder until posteriors are written."""


def save(p, path): raise NotImplementedError


def load_posterior(path): raise NotImplementedError
