"""The papers' experiment in small: BCT, FCT and FastFill on the built-in glyphs, several seeds (`make reproduce`)."""
