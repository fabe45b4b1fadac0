"""What a user calls.

    vmp, batches, starts    `VMP`: one run, many runs at once, one run from several starts
    variational_em, em_steps    `VariationalEM`, and its steps, compiled
    importance    `correct`: mean field, weighed
    marginalised, integrable, integrals    `marginalised`: a NumPyro program without what can be
                  integrated out
    quadrature    over what is left of it, up to three numbers
    agent, inputs, goals, forgetting, unseen, rollout    `Agent`: filters, adapts, plans and acts;
                  what it is given, and is to see; old evidence that counts less; goals unlike
                  anything seen; its episodes

Another way to run a program is one file here, made of `engine.compiled.compiled_for` and the stages
of what that gives (`starts.py` is a short one), and an option or a method of the class it belongs
to.
"""
