"""HSM tokens: worker processes, the pool over them, and everything that knows PKCS#11."""
