"""Figures that neither train.py nor infer.py prints. Nobody imports this folder; results/ holds what it wrote."""
