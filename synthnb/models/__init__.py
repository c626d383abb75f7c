"""The model: `encoders` hear, `fields` move parameters, `flow` samples and has the loss, `checkpoint` keeps."""
