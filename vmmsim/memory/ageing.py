def age(memory, ns, *, seed, name): pass
