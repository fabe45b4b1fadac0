"""Programs as factor graphs. No inference in here.

    build         from a traced program to its graph, with the help of all others
    factor        the contract: what is proved of a factor, and all that the engine knows of it
    proving       the proofs, site by site; scored: of those told by their density alone; links:
                  which parameters may depend on what, and if one may not, which line of the program
                  made it so
    blocks, groups    which latents share a belief; names that belong together
    borders, matrices, discrete    Gaussian globals that join a chain; precisions W (x) S + U (x) V;
                  discrete latents, each factor once for each of their values
    shown, tables, drawing    graphs as text and pictures

Another form of belief for latents that meet: `blocks.py` says when. What may depend on what for
another family: its row in `jopa_ppl.program.families`; `links.py` reads it.
"""
