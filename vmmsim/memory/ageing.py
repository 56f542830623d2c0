def live_in(memory, ns, *, seed, name, life):
    pass
