"""The paper's ablations as one program: trainings under equal conditions, scores, verdicts."""
