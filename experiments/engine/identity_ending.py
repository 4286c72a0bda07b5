def finish(tables, diverged, dataset, arms, folder):
    for k,v in tables.items(): print(k, len(v)); print(v.tail(3).to_string())
    print(diverged)
