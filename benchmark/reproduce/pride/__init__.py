"""PriDe (Pavlak 2018): federated logistic regression on MNIST under Paillier encryption."""
