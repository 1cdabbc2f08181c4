"""Figures that neither train.py nor infer.py prints: python -m bench params | claims | latency | reading.

Nobody imports this folder; results/ holds what its commands wrote.
"""
