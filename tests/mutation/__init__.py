"""Mutation run: break every formula of the samplers and solvers once, and see a test fail (`make mutate`)."""
