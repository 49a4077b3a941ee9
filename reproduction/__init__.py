"""The papers' experiments in small: BCT, FCT and FastFill on glyphs and emoji; maps between text models."""
