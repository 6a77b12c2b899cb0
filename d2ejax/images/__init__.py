"""Images: real ones from packages and local folders, and the networks that make and name them.

A latent posterior is built from these: a generator and a classifier.
"""
