"""What runs before a sweep: a reference policy from demonstrations, answers to prompts, rewards that are trained."""
