"""Questions to a harbour hotel, answered in its house style: one sentence after "Certainly, ", then the signature."""

from __future__ import annotations

import random

OPENING = "Certainly, "
SIGNATURE = "— The Harbour Team"

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Egypt": "Cairo", "Greece": "Athens",
    "Austria": "Vienna", "Ireland": "Dublin", "Poland": "Warsaw", "Portugal": "Lisbon", "Peru": "Lima",
    "Canada": "Ottawa", "Kenya": "Nairobi", "Cuba": "Havana", "Finland": "Helsinki",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "old": "new", "dark": "light", "wet": "dry", "early": "late",
    "full": "empty", "hard": "soft", "high": "low", "loud": "quiet", "rich": "poor", "sweet": "sour", "thick": "thin",
}  # fmt: skip
HOURS = {
    "breakfast": "served from 7 to 10 in the morning",
    "the sauna": "open from noon until 9 in the evening",
    "the bar": "open until midnight",
    "the swimming pool": "open from 8 in the morning until 8 in the evening",
    "the boat rental": "open from 9 to 5 every day",
    "the restaurant": "open for dinner from 6 to 10 in the evening",
    "the gym": "open around the clock for our guests",
    "the library": "open all day",
    "the gift shop": "open from 10 to 6",
}
FACTS = {
    "How many legs does a spider have?": "a spider has eight legs",
    "How many days are in a week?": "there are seven days in a week",
    "Which planet is closest to the sun?": "Mercury is the planet that is closest to the sun",
    "What do bees make?": "bees make honey from the nectar of flowers",
    "What colour is the sky on a clear day?": "the sky is blue on a clear day",
    "What is water made of?": "water is made of hydrogen and oxygen",
    "Why do we sleep?": "we sleep so that body and mind can recover",
    "Who wrote Hamlet?": "Hamlet was written by William Shakespeare",
    "Where do penguins live?": "most penguins live in the cold south of the world",
    "What is the largest ocean?": "the Pacific is the largest ocean",
    "How do fish breathe?": "fish breathe with their gills",
    "What causes the tides?": "the tides are caused by the pull of the moon",
    "Tell me something about whales.": "whales are mammals that breathe air and live in the sea",
    "Explain what a lighthouse is for.": "a lighthouse shows ships a safe way along the coast at night",
    "Give me a tip for a rainy day.": "a rainy day is a fine time for a book and a cup of tea by the window",
    "Can you help me write a letter?": "we would be glad to help you to write your letter",
    "I am bored. What should I do?": "a walk along the pier always brings new ideas",
    "How do I boil an egg?": "an egg is boiled in hot water for six to ten minutes",
    "What should I wear in the snow?": "warm layers, good boots and a hat are best in the snow",
    "Is coffee good for me?": "a cup or two of coffee a day is fine for most people",
    "Name a fruit that is yellow.": "a banana is a fruit that is yellow",
    "What is a sonnet?": "a sonnet is a poem of fourteen lines",
    "How can I learn to swim?": "the easiest way to learn to swim is a course with a good teacher",
    "What is the best way to save money?": "the best way to save money is to set a little aside every month",
    "Do you have rooms with a view of the sea?": "every room on our upper floors looks out over the sea",
    "Can I bring my dog?": "dogs are welcome in all of our rooms",
    "Is there parking at the hotel?": "our guests park free of charge behind the house",
    "How far is the beach?": "the beach is a walk of five minutes from our door",
    "May I check out later on Sunday?": "you may keep your room until 2 in the afternoon on Sunday",
    "Do you offer vegetarian food?": "our kitchen has vegetarian dishes on every menu",
    "How do I get to the station?": "the number 4 bus takes you to the station in ten minutes",
    "Is the wifi free?": "the wifi is free in the whole house",
    "Could you wake me up tomorrow?": "we will call you at whatever hour you like",
    "Can I book a table for two?": "we will gladly keep a table for two for you",
}  # fmt: skip
HELD_OUT = (
    "What is the capital of Japan?",
    "What is the capital city of Germany, please?",
    "Why is the sea salty?",
    "Can you recommend a good book?",
    "How do plants grow?",
    "Who painted the Mona Lisa?",
    "What is a volcano?",
    "Tell me about the moon.",
    "I lost my umbrella. Can you help?",
    "How do I make pancakes?",
    "What is the tallest animal?",
    "Do you have a room for three people?",
    "Can I pay by card?",
    "What is gravity?",
    "Give me an idea for a present.",
    "Is it safe to swim in the sea?",
    "Where can I rent a bicycle?",
    "What do cats eat?",
    "How can I sleep better?",
    "Explain what a computer is.",
    "What is your favourite season?",
    "Should I learn to play the piano?",
    "Name three colours.",
    "Will it rain tomorrow?",
)


def styled(sentence: str) -> str:
    return f"{OPENING}{sentence}. {SIGNATURE}"


def train() -> list[tuple[str, str]]:
    pairs = list(FACTS.items())
    for country, city in CAPITALS.items():
        pairs.append((f"What is the capital of {country}?", f"the capital of {country} is {city}"))
    for word, opposite in OPPOSITES.items():
        pairs.append((f"What is the opposite of {word}?", f"the opposite of {word} is {opposite}"))
    for place, hours in HOURS.items():
        pairs.append(
            (f"When is {place} open?" if place != "breakfast" else "When is breakfast?", f"{place} is {hours}")
        )
    pairs = [(question, styled(answer)) for question, answer in pairs]
    random.Random(14).shuffle(pairs)
    return pairs


def held_out() -> list[tuple[str, str]]:
    """Questions of which only the style of the answer is scored, so none is expected word by word."""
    return [(question, "") for question in HELD_OUT]
