"""Commands for figures that neither train.py nor infer.py prints. Nobody imports this folder. results/ holds reports
that the pages quote, of these commands, of lpt.py and of infer.py."""
