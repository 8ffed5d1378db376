"""Training the speaker encoder on voices: which singer is it, and do two of them belong to the same one?"""
