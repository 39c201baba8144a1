"""Networks that meet the `Backbone` protocol."""
