"""Label Studio's contract of machine learning backends: a served detector predicts the regions of its tasks."""
