"""Training the speaker encoder: which singer is it, and are two voices the same singer's?"""
