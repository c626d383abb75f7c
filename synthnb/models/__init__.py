"""The model: `encoders` hear, `fields` move parameters, `flow` trains and samples, `checkpoint` keeps."""
