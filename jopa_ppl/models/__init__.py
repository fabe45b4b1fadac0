"""Networks and programs to begin with: a VAE of frames, polynomial dynamics of its poses, and
control from pixels by both.

They are ordinary users of the library: nothing in it imports them, `import jopa_ppl` neither.

- `jopa_ppl.models.vae`: `VAE`, `covering` (one that starts at principal components), `train`.
- `jopa_ppl.models.networks`: `Encoder`, `Decoder`, `windows`.
- `jopa_ppl.models.training`: `descend`, steps of an Optax optimiser: it trains what is no part of a
  program yet.
- `jopa_ppl.models.swing`: `swing`, a program that learns, imagines and acts (see jp.Agent).
- `jopa_ppl.models.control`: `learn` (from frames and actions of any system), `imagine`, `agent`.
"""
