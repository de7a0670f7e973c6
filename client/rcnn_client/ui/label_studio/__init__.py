"""A machine learning backend for Label Studio: a served detector predicts the regions of its tasks."""
